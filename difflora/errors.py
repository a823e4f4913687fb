"""Every error that a user can cause. All say what, where, what was found and what to do, in one line."""

LONGEST = 1000  # characters of a message


class DiffLoraError(Exception):
    """Base of all errors with a message meant for the user.

    Names in it may come from a file that somebody else made, so what cannot be printed is escaped, and of what is too
    long the middle is left out: the page knows an error by its beginning and its end.
    """

    def __init__(self, message: str = "") -> None:
        printable = (one if one.isprintable() else one.encode("unicode_escape").decode() for one in _cut(message))
        super().__init__(_cut("".join(printable)))


def _cut(text: str) -> str:
    half = LONGEST // 2
    return text if len(text) <= LONGEST else text[:half] + "…" + text[1 - half :]


class FileError(DiffLoraError):
    """A file is missing, unreadable, damaged, changed while in use, or not a safetensors file."""


class UnsupportedError(DiffLoraError):
    """The file is sound, but holds something that is not a linear change of the base model's weights."""


class TensorError(DiffLoraError):
    """A tensor has NaN or Inf values, a dtype that is no number, or a shape that does not fit its partner's."""


class PairError(DiffLoraError):
    """Two LoRAs cannot be combined: other base models, nothing in common, or no difference at all."""


class SelectionError(DiffLoraError):
    """A selection cannot be parsed, or selects nothing."""


class RankError(DiffLoraError):
    """A rank rule asks for something that is not a rank."""


class OutputError(DiffLoraError):
    """The result cannot be written: the folder is missing, the file exists, the disk is full."""


class ExistsError(OutputError):
    """A file of this name exists already, and overwriting was not allowed."""


class RecipeError(DiffLoraError):
    """A recipe cannot be carried out: it is damaged, too new, or its input files are not there."""


class TrainingError(DiffLoraError):
    """A training recipe has a setting that musubi-tuner would refuse, or that cannot be written for both systems."""


class InputError(DiffLoraError):
    """A node got a value that is not one of its options, or not a number."""
