"""Influence of rows on a mean loss: losses as functions of weights, their derivatives, inverse Hessians, scores."""
