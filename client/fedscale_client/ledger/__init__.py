"""The privacy ledger of a site: what was asked of its data, what left, and how much privacy that has cost."""
