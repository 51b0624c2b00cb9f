# %% [markdown]
# # Train models and compare them
#
# A language model and RecBole's classic ones, on the same rows and by the same metrics. The settings below keep this
# small: without them the same call trains on all rows, and `llm_path="<a model of the hub>"` takes a real LLM.

# %%
import recbole_llm

small = {
    "train_sample_size": 64,
    "valid_sample_size": 50,
    "test_sample_size": 100,
    "epochs": 1,
    "MAX_ITEM_LIST_LENGTH": 10,
    "SASRec.n_layers": 1,
    "BIGRec.tiny_steps": 200,  # of the small LLM made of the data set's own titles
    "BIGRec.num_beams": 2,
    "show_progress": False,
}
table = recbole_llm.compare("Pop,SASRec,BIGRec", "ml-100k", **small)
table  # a notebook shows it

# %% [markdown]
# As a DataFrame, with one line per model. SASRec has two: on all rows, and on the rows that the LLM has seen. A real
# comparison takes more than a hundred rows and one epoch.

# %%
frame = table.to_frame()
print(frame[["model", "train_rows", "hit@10", "ndcg@10"]].to_string(index=False))

# %% [markdown]
# The whole table has more: every metric, the settings' effective point, wall time, versions. It is on disk as well, as
# Markdown, CSV and JSON. `seeds=[1, 2, 3]` would give a line per model and seed.

# %%
print(table)
