"""transformers loads a published model through its wrapper of timm, with this package merely installed."""

import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip('transformers', reason='transformers is not installed')

pytestmark = pytest.mark.slow


def test_transformers_loads_a_published_model(published, client, exported, tmp_path):
    Image.new('RGB', (32, 32), (90, 90, 90)).save(tmp_path / 'grey.png')
    loaded = client(published, '''
        import json, sys, torch
        from safetensors.torch import load_file, save_file
        from transformers import AutoModelForImageClassification, pipeline
        model = AutoModelForImageClassification.from_pretrained('me/greys').eval()
        with torch.inference_mode():
            logits = model(load_file(sys.argv[1])['input']).logits
        save_file({'logits': logits}, sys.argv[2])
        print('dit_timm' in sys.modules, json.dumps(pipeline('image-classification', model='me/greys')(sys.argv[3])))
    ''', exported / 'golden.safetensors', tmp_path / 'logits.safetensors', tmp_path / 'grey.png')
    assert loaded.returncode == 0, loaded.stderr
    golden = load_file(exported / 'golden.safetensors')
    torch.testing.assert_close(
        load_file(tmp_path / 'logits.safetensors')['logits'], golden['logits'], rtol=1e-4, atol=1e-5,
    )
    known, _, answer = loaded.stdout.strip().splitlines()[-1].partition(' ')
    # Through the entry point, by which torch imports the package.
    assert known == 'True'
    model = timm.create_model(f'local-dir:{exported}', pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    with torch.inference_mode():
        expected = model(transform(Image.open(tmp_path / 'grey.png'))[None]).softmax(1)[0]
    scores = {entry['label']: entry['score'] for entry in json.loads(answer)}
    assert scores == pytest.approx({f'class{number}': value.item() for number, value in enumerate(expected)}, abs=1e-3)
