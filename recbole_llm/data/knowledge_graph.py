"""Items and the entities of a knowledge graph: which are linked, and their ids."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
from recbole.data.dataset import KnowledgeBasedDataset

from recbole_llm.errors import InputError


def filter_link(self: KnowledgeBasedDataset) -> None:
    """Keep links of items and entities that are there; interactions with items that have none stay.

    RecBole leaves these interactions out, so that a knowledge model would learn from, and be evaluated on, other data
    than the models beside it.
    """
    items, entities = self._get_rec_item_token(), self._get_entity_token()
    self.item2entity = {item: own for item, own in self.item2entity.items() if item in items and own in entities}
    shared = [entity for entity, count in Counter(self.item2entity.values()).items() if count > 1]
    name = f"{self.dataset_name}.link"
    if shared:
        raise InputError(
            "", f"{name} links several items to entity '{shared[0]}'; links must be one to one", kind="data"
        )
    if not self.item2entity:
        raise InputError("", f"{name} links no item of the interactions to an entity of the .kg file", kind="data")
    self.entity2item = {entity: item for item, entity in self.item2entity.items()}


def merge_item_and_entity(self: KnowledgeBasedDataset) -> None:
    """Entities take over the ids of their items, the others follow; RecBole renumbers the items instead.

    With a link for every item both give the same ids.
    """
    items, entities = self.field2id_token[self.iid_field], self.field2id_token[self.head_entity_field]
    item_ids = {token: number for number, token in enumerate(items)}
    linked = np.array([entity in self.entity2item for entity in entities])
    is_own = ~linked & (np.arange(len(entities)) > 0)
    new_ids = np.zeros(len(entities), dtype=np.int64)
    new_ids[linked] = [item_ids[self.entity2item[entity]] for entity in entities[linked]]
    new_ids[is_own] = np.arange(len(items), len(items) + is_own.sum())
    tokens = np.concatenate([np.array([self.item2entity.get(item, item) for item in items]), entities[is_own]])
    token_ids = {token: number for number, token in enumerate(tokens)}
    for field in self.alias["entity_id"]:
        self._reset_ent_remapID(field, new_ids, tokens, token_ids)
    self.field2id_token[self.entity_field] = tokens
    self.field2token_id[self.entity_field] = token_ids
    note = f"{self.dataset_name}.link: {len(self.item2entity):,} of {len(items) - 1:,} items are in the knowledge graph"
    self.reading.notes.append((logging.INFO, note))
