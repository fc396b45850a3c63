"""Hugging Face models in and out: backbones, scalar heads, adapters, averages, schedules, exported folders.

The submodules import torch and transformers, so nothing is imported here.
"""
