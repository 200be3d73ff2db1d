"""What an implementation is: something that runs one or more phases and can be built again, also in another process."""

from typing import Any, Callable, ClassVar, NamedTuple, Protocol, Tuple


class Work(NamedTuple):
    """One phase of an implementation, its inputs allocated and touched.

    Attributes:
        function: The work itself; what it returns is dropped.
        warm_up: A smaller call that loads libraries and starts threads.
        scale: By how much the time of `function` counts.
    """
    function: Callable[[], Any]
    warm_up: Callable[[], Any]
    scale: float = 1.


class Implementation(Protocol):
    """An implementation at one size. It can be pickled; `build` makes what cannot.

    Attributes:
        phases: Names that `build` accepts.
    """
    phases: ClassVar[Tuple[str, ...]]

    @property
    def device(self) -> str:
        """Where it runs."""
        ...

    def build(self, phase: str) -> Work:
        """Allocate everything that exists before the phase starts."""
        ...
