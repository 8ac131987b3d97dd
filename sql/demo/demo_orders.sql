-- Statements of the demo flow CountOrders, which fails until somebody makes its table.

-- name: count_orders()$
-- How many orders there are.
SELECT count(*) FROM demo_orders;
