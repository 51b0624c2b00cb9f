"""Influence of rows on a loss: per-row losses, solvers of the inverse Hessian, and scores."""
