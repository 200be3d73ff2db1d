"""From the folder of a run to a verified model on the Hugging Face Hub: export, card, push, verify, registry; and page.

`python -m hub --help`, from the checkout; needs the extra `hub`, and `page` the extra `space`.
"""
