"""Stages: results that are computed once and found again, a folder per stage and fingerprint.

A stage writes into a ``.partial`` folder beside its final path, under a lock, and is renamed when it is whole. So a
killed run leaves either nothing or something to resume from, two runs never write the same folder, and a folder with
its final name is complete. What was written is checked on every reading; a stage that is damaged, or that another
version wrote in another format, is rebuilt, and the log says so.
"""

from recbole_llm.stages.folder import UNFINISHED, find_damage, read_manifest
from recbole_llm.stages.stage import Stage, fingerprint, stage_seed
from recbole_llm.stages.store import StageStore

__all__ = ["UNFINISHED", "Stage", "StageStore", "find_damage", "fingerprint", "read_manifest", "stage_seed"]
