"""``recbole-llm import``: public data sets and tables as atomic files.

:func:`recbole_llm.data.importers.importing.import_dataset` is the same in Python. A layout is a module with a function
``find``, which says what the files are and how they are read (:class:`recbole_llm.data.importers.plan.ImportPlan`).
"""
