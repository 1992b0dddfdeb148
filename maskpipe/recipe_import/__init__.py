"""recipe from: a trainer's configuration as a recipe, where the meaning is the same.

    translation.py   keys taken one by one; what is left over is about training, or an error
    axolotl.py       the YAML of axolotl 0.21
    trl.py           the YAML of `trl sft`, TRL 1.16

Every key of the file is translated, ignored because it is about training (and listed), or refused with the reason and
what to do. Nothing is dropped in silence, and defaults that the trainer would use are written out.
"""

from maskpipe.recipe_import.importing import read_config
from maskpipe.recipe_import.translation import Refusal, Translation

__all__ = ["Refusal", "Translation", "read_config"]
