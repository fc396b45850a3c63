"""The commands other than `fit`: plain functions whose signatures are their command lines."""
