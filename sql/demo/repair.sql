-- Lets the demo flow CountOrders succeed, which fails because this table is missing: psql -f repair.sql

CREATE TABLE IF NOT EXISTS demo_orders (
    id        bigint      GENERATED ALWAYS AS IDENTITY,
    placed_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT demo_orders_pkey PRIMARY KEY (id)
);
