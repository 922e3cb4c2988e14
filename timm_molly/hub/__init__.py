"""Models to the Hugging Face Hub and back.

`push` makes a folder with weights, config, card and figures (`make`, `card`), and uploads it in one commit; plain
`timm.create_model('hf-hub:...')` loads it, and `timm_molly.load` (`folder`, `download`).
"""
