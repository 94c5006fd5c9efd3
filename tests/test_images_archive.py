"""Tests of images_archive."""
