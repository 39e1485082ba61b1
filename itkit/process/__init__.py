"""Work over folders of cases: find and pair them, describe them in a manifest, keep a ledger of what was done."""
