"""Public data sets and tables of one's own as atomic files: ``recbole-llm import``.

:func:`recbole_llm.data.importers.importing.import_dataset` is the same in Python. A layout is a module with a function
``find``, which says what the files are and how they are read (:class:`recbole_llm.data.importers.plan.Plan`).
"""
