"""Reward controls and other methods, one small file each."""
