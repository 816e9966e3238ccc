"""Several nodes of one fleet, of which one is active: see ``devit_contract.wire.lease`` for the rule."""
