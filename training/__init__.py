"""Contrastive training: a trainer, its data, and what it measures."""
