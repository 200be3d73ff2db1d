"""The README's picture."""

import draw_dendrite


def test_picture_is_small_and_the_same_each_time(tmp_path):
    for name in ('a.svg', 'b.svg'):
        assert draw_dendrite.main([str(tmp_path / name)]) == 0
    content = (tmp_path / 'a.svg').read_bytes()
    assert content == (tmp_path / 'b.svg').read_bytes()
    assert content.startswith(b'<?xml') and len(content) < 1 << 16
