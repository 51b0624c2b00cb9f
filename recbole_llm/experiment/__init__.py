"""What users call: run, compare, tune, load_run, recommend, and the command.

The functions are :func:`recbole_llm.run`, :func:`recbole_llm.compare` and :func:`recbole_llm.load_run`; importing this
package alone loads nothing, so that a command line is read before RecBole is imported.
"""
