import pytest

from .client_code import FILES


@pytest.fixture
def folder(tmp_path):
    """A folder with the files to publish."""
    for path, content in FILES.items():
        (tmp_path / 'model' / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'model' / path).write_bytes(content)
    return tmp_path / 'model'
