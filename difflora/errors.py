"""Every error that a user can cause. All say what, where, what was found and what to do, in one line."""


class DiffLoraError(Exception):
    """Base of all errors with a message meant for the user."""


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
    """There is a file of this name already, and nobody has allowed to replace it."""


class RecipeError(DiffLoraError):
    """A recipe cannot be carried out: it is damaged, too new, or its input files are not there."""


class TrainingError(DiffLoraError):
    """A training recipe has a setting that musubi-tuner would refuse, or that cannot be written for both systems."""


class InputError(DiffLoraError):
    """A node was given a value that is none of its options, or no number."""
