# %% [markdown]
# # Train models and compare them
#
# A language model and RecBole's classic ones, on the same rows and by the same metrics. The settings below keep this
# small: without them the same call trains on all rows, and `llm_path="<a model of the hub>"` takes a real LLM.

# %%
import recbole_llm

few = {"train_sample_size": 64, "valid_sample_size": 50, "test_sample_size": 100, "epochs": 1}
tiny = {"tiny_steps": 100, "tiny_hidden_size": 32, "num_beams": 2}  # the small LLM made of the data set's own titles

table = recbole_llm.compare("Pop,SASRec,BIGRec", "ml-100k", **few, **tiny, show_progress=False)
table  # a notebook shows it

# %% [markdown]
# As a DataFrame, with one line per model. SASRec has two: on all rows, and on the rows that the LLM has seen.

# %%
frame = table.to_frame()
print(frame[["model", "train_rows", "hit@10", "ndcg@10"]].to_string(index=False))

# %% [markdown]
# A setting for one model only has the model's name before it, and `seeds=[1, 2, 3]` gives a line per seed.

# %%
small = {**few, **tiny, "show_progress": False, "BIGRec.lora_r": 4}
again = recbole_llm.compare("Pop,BIGRec", "ml-100k", seeds=[1, 2], **small)
print(again.to_frame()[["model", "seed", "ndcg@10"]].to_string(index=False))
