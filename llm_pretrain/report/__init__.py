"""What a folder of runs found out, as one page that opens anywhere."""
