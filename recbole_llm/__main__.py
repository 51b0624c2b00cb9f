"""``python -m recbole_llm`` is the command ``recbole-llm``."""

import sys

from recbole_llm.experiment.command import main

if __name__ == "__main__":
    sys.exit(main())
