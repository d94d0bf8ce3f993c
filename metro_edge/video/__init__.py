"""Frames in, drawings on them, frames out."""
