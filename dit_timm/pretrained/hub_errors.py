"""Remedies for errors of the Hugging Face Hub, in words, and what a broken connection to it raises."""

import importlib
from typing import Dict, Optional

from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

# The client has requests beneath it before version 1, httpx in 1, httpx2 from 2 on: its error is derived from theirs.
_http = importlib.import_module(HfHubHTTPError.__bases__[0].__module__.partition('.')[0])
# No connection was made.
ConnectionFailed = _http.ConnectError if hasattr(_http, 'ConnectError') else _http.ConnectionError
# No connection was made, or it broke or timed out.
TransportFailed = _http.TransportError if hasattr(_http, 'TransportError') else _http.RequestException

# The first that fits counts: a gated repository is also one that is not found.
_REMEDIES = (
    (GatedRepoError, 'The repository is gated: ask for access on its page, and log in (`hf auth login`).'),
    (RevisionNotFoundError, 'There is no such revision: name a branch, tag or commit that the repository has.'),
    (RepositoryNotFoundError,
     'There is no such repository, or it is private: check its name, and log in (`hf auth login`).'),
)
_STATUS_REMEDIES: Dict[Optional[int], str] = {
    401: 'Log in: `hf auth login`, or set HF_TOKEN.',
    403: 'The token may not do this: it needs the right to write to this owner\'s repositories.',
    409: 'Somebody has created it in the meantime: look at it, and push again.',
    412: 'Somebody has committed in the meantime: look at what changed, and push again.',
    429: 'Too many requests: wait some minutes.',
}


def remedy(error: Exception) -> Optional[str]:
    """A sentence or two for the user; None for errors that are not of the Hub."""
    for kind, text in _REMEDIES:
        if isinstance(error, kind):
            return text
    if not isinstance(error, HfHubHTTPError):
        return None
    status = error.response.status_code if error.response is not None else None
    return _STATUS_REMEDIES.get(status, 'The Hub could not answer: try again later.')
