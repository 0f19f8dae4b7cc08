"""Tensors to bytes and back; nothing here knows about models."""
