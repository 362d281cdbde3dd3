"""Benchmarks: a script that only imports what a training script takes from transformers."""

from transformers import Trainer, TrainingArguments, ViTForImageClassification

assert Trainer
assert TrainingArguments
assert ViTForImageClassification
