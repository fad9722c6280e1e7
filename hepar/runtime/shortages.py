"""How libraries say that there is too little memory."""

from __future__ import annotations

# numpy raises MemoryError; torch on a GPU, torch on a CPU and ITK raise errors of their own, known by these words
OUT_OF_MEMORY = ("out of memory", "allocate memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error came because there is no more memory, of the machine or of a GPU."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)
