"""Models to the Hugging Face Hub and back.

`timm-molly push` makes a folder with weights, config, card and figures (`run`, `card`, `make`) and uploads it in one
commit (`push`); plain `timm.create_model('hf-hub:...')` loads it. `load` gives more: settings, report and transform.
"""

from timm_molly.hub.download import Loaded, load

__all__ = ['Loaded', 'load']
