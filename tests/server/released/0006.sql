INSERT INTO project (name, created) VALUES ('ward', '2026-01-02 03:04:05.678901+00:00');
INSERT INTO ticket (id, secret_hash, project, role, name, expires_at, used_at, used_by)
VALUES ('t1', 'c0ffee', 'ward', 'node', 'alpha', '2026-01-03 03:04:05.678901+00:00', NULL, NULL);
INSERT INTO member (name, project, role, serial, expires_at, joined_at, last_seen, datasets, version, revoked_at)
VALUES ('alpha', 'ward', 'node', '5e', '2026-01-03 03:04:05.678901+00:00', '2026-01-02 03:04:05.678901+00:00', NULL, '["icu"]', '0.1.0', NULL);
INSERT INTO run (id, project, name, plan, plan_hash, bundle, key, status, reason, created, finished, record)
VALUES ('sepsis-0a1b2c', 'ward', 'sepsis', '[job]', 'aa', 'bb', 'k1', 'running', '', '2026-01-02 03:04:05.678901+00:00', NULL, NULL);
INSERT INTO journal (run, seq, kind, payload, at, unique_key)
VALUES ('sepsis-0a1b2c', 1, 'answered', '{"node":"alpha","loss":NaN}', '2026-01-02 03:04:05.678901+00:00', 'train/1/alpha');
INSERT INTO checkpoint (run, seq, number, phase, facts, model, slots, outcome, at)
VALUES ('sepsis-0a1b2c', 1, 1, 'train', '{"number":1}', 'm', '{"momentum":"s"}', '{"auc":0.5}', '2026-01-02 03:04:05.678901+00:00');
INSERT INTO account VALUES ('grace', 'auditor', '$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0c2FsdA$aGFzaA', '2026-01-02 03:04:05.678901+00:00');
INSERT INTO login VALUES ('c0ffee', 'grace', 'auditor', '2026-01-02 03:04:05.678901+00:00', '2026-01-03 03:04:05.678901+00:00');
UPDATE member SET identity = 'd75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a' WHERE name = 'alpha';
INSERT INTO lease VALUES ('coordinator', 'fl.example.org:8470', 'a1b2', 7, '2026-01-02 03:04:05.678901+00:00');
INSERT INTO replica VALUES ('a1b2', 'fl.example.org:8470', 'fl.example.org:8471', '2026-01-02 03:04:05.678901+00:00');
UPDATE member SET ledger = '7:4ce5dc09bfc3f8d2d1e0b2b1a0c9f8e7d6c5b4a39281706f5e4d3c2b1a09f8e7' WHERE name = 'alpha';
INSERT INTO ticket (id, secret_hash, project, role, name, expires_at, used_at, used_by, used_key)
VALUES ('t2', 'c0ffee', 'ward', 'node', 'alpha', '2026-01-03 03:04:05.678901+00:00', '2026-01-02 03:04:05.678901+00:00', 'alpha', 'k1');
