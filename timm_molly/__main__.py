"""`python -m timm_molly train.py ...` runs a train script with the plugin registered; other words as `timm-molly`."""

import sys

from timm_molly.cli import COMMANDS, main

if __name__ == '__main__':
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith('-') and arguments[0] not in COMMANDS:
        arguments.insert(0, 'run')
    sys.exit(main(arguments))
