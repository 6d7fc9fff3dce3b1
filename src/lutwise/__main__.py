# SPDX-License-Identifier: Apache-2.0
"""``python -m lutwise`` is ``quantize``."""

from lutwise.cli import main

if __name__ == "__main__":
    main()
