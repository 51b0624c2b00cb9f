# %% [markdown]
# # Recommend with a trained model
#
# A run keeps everything that is needed to recommend: in this process, or in any other one by its folder.

# %%
import recbole_llm

few = {"train_sample_size": 64, "valid_sample_size": 50, "test_sample_size": 100, "epochs": 1}
tiny = {"tiny_steps": 100, "tiny_hidden_size": 32, "num_beams": 2}  # the small LLM made of the data set's own titles
run = recbole_llm.run("BIGRec", "ml-100k", **few, **tiny, show_progress=False)
print(run)
print({name: round(value, 4) for name, value in run.metrics.items()})

# %% [markdown]
# After a history of titles, the oldest first; item ids do as well.

# %%
print(run.recommend(["Toy Story (1995)", "Babe (1995)"], k=5))

# %% [markdown]
# For users of the data set, by all that they did; several at once.

# %%
print(run.recommend(users=["196", "186"], k=3))

# %% [markdown]
# What every test row got, in the data set's own ids.

# %%
print(run.ranks.head())

# %% [markdown]
# Later, elsewhere: the folder is enough.

# %%
later = recbole_llm.load_run(run.folder)
assert later.recommend(users="196", k=3).equals(run.recommend(users="196", k=3))
