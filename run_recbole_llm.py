"""Train and evaluate models side by side: ``python run_recbole_llm.py --model=SASRec,BIGRec --dataset=ml-100k``."""

import sys

from recbole_llm.experiment.command import main

if __name__ == "__main__":
    sys.exit(main())
