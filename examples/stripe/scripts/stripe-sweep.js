// @description Removes what cancellations left, once no late delivery can come any more
// @schedule 17 4 * * *
// @timeout 5m

// Longer than Stripe tries to deliver.
const KEPT_MS = 7 * 24 * 3600 * 1000

if (req.method !== 'SCHEDULE') return res.status(404).json({ error: 'this one is for the clock' })

let removed = 0
for (const mark of await tenantry.containers.list({ label: 'stripe:cancelled', sort_by: 'created_at', limit: 100 })) {
  if (Date.now() - Date.parse(mark.created_at) < KEPT_MS) continue
  await tenantry.containers.delete(mark.id)
  removed += 1
}
console.log(`${removed} removed`)
return { removed }
