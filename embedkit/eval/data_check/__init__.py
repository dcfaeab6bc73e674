"""What is wrong with the data of an evaluation, before anything is measured on them."""
