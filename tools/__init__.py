"""The commands beside `fit`: plain functions whose signatures are their command lines."""
