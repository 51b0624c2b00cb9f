# %% [markdown]
# # Recommend with a trained model
#
# A run keeps everything that is needed to recommend, in this process or, by its folder, in any other.

# %%
import recbole_llm

run = recbole_llm.run(
    "BIGRec",
    "ml-100k",
    train_sample_size=64,
    valid_sample_size=50,
    test_sample_size=100,
    epochs=1,
    tiny_steps=200,  # of the small LLM made of the data set's own titles; llm_path takes a real one
    num_beams=2,
    show_progress=False,
)
print(run.folder, run.metrics["ndcg@10"])

# %% [markdown]
# For a history of titles, oldest first; item ids work as well.

# %%
print(run.recommend(["Toy Story (1995)", "Babe (1995)"], k=5).to_string(index=False))

# %% [markdown]
# For users of the data set, from all of their interactions; several at once.

# %%
print(run.recommend(users=["196", "186"], k=3).to_string(index=False))

# %% [markdown]
# The rank of every test row, in the data set's own ids.

# %%
print(run.ranks.head().to_string(index=False))

# %% [markdown]
# In another process, the folder is enough.

# %%
later = recbole_llm.load_run(run.folder)
assert later.recommend(users="196", k=3).equals(run.recommend(users="196", k=3))
