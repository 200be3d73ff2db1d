"""Page: classifies a photograph with a Dit network and shows where its quadratic term spoke.

`python -m hub page` serves it, with the weights that ship with dit_timm and without network; `--models` offers others.
"""

import functools
import threading
from collections import Counter
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import gradio as gr
import timm
from gradio.data_classes import ImageData
from gradio.utils import get_upload_folder
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_data_config
from timm.models import get_pretrained_cfg
from torch import nn

from dit_timm import load_pretrained_checked
from dit_timm.analysis.ablation import quadratic_terms
from dit_timm.analysis.quadratic_map import Explained, explain
from dit_timm.errors import InvalidInputError, UnavailableError, UserError

from .pictures import MAX_BYTES, coloured, read_picture, seen

_ABOUT = """# Dendritic CNNs
A Dit-CNN is a CNN in which one convolution also receives a weighted sum of products of its input channels. Upload a
photograph: the page shows what the network says with and without that term, and where in the picture the term speaks
for the answer (red) or against it (blue), to first order."""
# Of the networks, which are shared and get hooks while they are looked at. Not every call waits in gradio's queue.
_lock = threading.Lock()
# Uploads and pictures are removed after this time.
_KEPT_SECONDS = 3600


def uploaded(payload: Optional[ImageData]) -> Optional[str]:
    """The path of what was uploaded, whatever it holds; None if nothing was.

    Raises:
        gr.Error: It is not of an upload: a client could name any file of this machine.
    """
    if payload is None or payload.path is None:
        return None
    path = Path(payload.path).resolve()
    if not (path.is_relative_to(Path(get_upload_folder()).resolve()) and path.is_file()):
        raise gr.Error('This file was not uploaded.', print_exception=False)
    return str(path)


def shipped() -> List[str]:
    """Names of the Dit networks whose weights are in the package."""
    return [name for name in timm.list_pretrained('dit_*') if get_pretrained_cfg(name).file]


@functools.lru_cache(maxsize=4)
def load(name: str) -> nn.Module:
    """A network of timm's registry or the Hub, its checksum compared.

    Raises:
        NoWeightsError: There is no such network.
        DamagedFileError: Its weights are not what was published.
        InvalidInputError: It has no quadratic term.
    """
    model = load_pretrained_checked(name)
    if not quadratic_terms(model):
        raise InvalidInputError(f'{name} has no quadratic term; this page is for Dit networks.')
    return model


def class_names(model: nn.Module) -> List[str]:
    """Of its configuration, else ImageNet's, else numbers; a name that comes twice gets the number of its class."""
    names = model.pretrained_cfg.get('label_names')
    subset = infer_imagenet_subset(model)
    if names is None and subset is not None:
        info = ImageNetInfo(subset)
        names = [info.index_to_description(number) for number in range(model.num_classes)]
    names = list(names or map(str, range(model.num_classes)))
    counts = Counter(names)
    return [name if counts[name] == 1 else f'{name} ({number})' for number, name in enumerate(names)]


Shown = Tuple[str, Dict[str, float], Dict[str, float], Image.Image, Image.Image]


def classify(path: Optional[str], name: str) -> Shown:
    """What the page shows of an uploaded file: a sentence, two tables of probabilities, two pictures.

    Raises:
        gr.Error: The file is missing or cannot be shown; the message says why.
    """
    if path is None:
        raise gr.Error('Upload a photograph first.', print_exception=False)
    with _lock:
        try:
            picture = read_picture(Path(path))
            model = load(name)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        config = resolve_data_config(model=model)
        image = create_transform(**config)(picture)
        explained = explain(model, image)
    names = class_names(model)
    view = seen(image, config['mean'], config['std'])
    return (
        sentence(explained, names),
        dict(zip(names, explained.probabilities.tolist())),
        dict(zip(names, explained.without.tolist())),
        view,
        coloured(view, explained.evidence),
    )


def sentence(explained: Explained, names: List[str]) -> str:
    """The answer in Markdown, and what it is without the quadratic term."""
    if not explained.evidence.any():
        return f'**{names[explained.probabilities.argmax()]}**. The quadratic term adds nothing: it is not trained.'
    first, other = (int(probabilities.argmax()) for probabilities in (explained.probabilities, explained.without))
    answer = f'**{names[first]}**, {100 * explained.probabilities[first]:.1f} %. Without the quadratic term '
    if first == other:
        return answer + f'also {names[first]}, {100 * explained.without[first]:.1f} %.'
    return answer + f'it would be **{names[other]}**, {100 * explained.without[other]:.1f} %.'


def page(names: List[str]) -> gr.Blocks:
    """The page, which offers the networks `names`."""
    with gr.Blocks(
            title='Dendritic CNNs', analytics_enabled=False, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS),
    ) as blocks:
        gr.Markdown(_ABOUT)
        with gr.Row():
            with gr.Column():
                photograph = gr.Image(elem_id='photograph', label='Photograph', sources=['upload', 'clipboard'])
                # gradio would open it, and what is no picture would end in an error of Pillow's.
                photograph.preprocess = uploaded
                network = gr.Dropdown(names, value=names[0], label='Network')
                button = gr.Button('Classify', variant='primary')
            with gr.Column():
                answer = gr.Markdown()
                with gr.Row():
                    full = gr.Label(label='Probabilities', num_top_classes=5)
                    without = gr.Label(label='Without the quadratic term', num_top_classes=5)
                with gr.Row():
                    shown = dict(interactive=False, buttons=['download'])
                    view = gr.Image(elem_id='view', label='What the network sees', **shown)
                    evidence = gr.Image(elem_id='evidence', label='Quadratic term', **shown)
        button.click(classify, [photograph, network], [answer, full, without, view, evidence])
    return blocks


def serve(names: Optional[List[str]], host: str, port: int) -> None:
    """Serve the page until interrupted.

    Args:
        names: The networks that it offers, see `load`; those of `shipped` if None.
        host: Address to serve on.
        port: Its port.

    Raises:
        UserError: See `load`.
        UnavailableError: The address or port cannot be had.
    """
    names = names or shipped()
    for name in names:
        load(name)
    try:
        page(names).launch(server_name=host, server_port=port, max_file_size=MAX_BYTES)
    except OSError as error:
        # gradio speaks of its own settings only.
        raise UnavailableError(f'{error} Here: --port and --host.') from error
