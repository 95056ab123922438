"""A backend that leaves attention's soft-cap out; run as a file, `gemline` with that backend."""

from typing import Any, cast

import torch

from gemline_kernels import choose, reference
from gemline_kernels.backend import Backend


class Uncapped:
    """The reference, but for the cap: with plain random inputs nobody would notice."""

    name = "uncapped"

    def __getattr__(self, name: str) -> Any:
        return getattr(reference, name)

    def paged_attention(self, *tensors: torch.Tensor, cap: float | None, **constants: Any) -> torch.Tensor:
        return reference.paged_attention(*tensors, cap=None, **constants)


def uncapped() -> Backend:
    return cast(Backend, Uncapped())  # its other operations are the reference's


if __name__ == "__main__":
    from gemline.cli.main import main

    choose.choose = uncapped  # type: ignore[assignment]  # functools.cache's own type
    main()
