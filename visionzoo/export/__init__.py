"""Graphs out of models, their proof, and the predictors that run them without torch."""
