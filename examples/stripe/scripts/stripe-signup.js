// @description Stripe's webhook: a customer who pays has a sandbox, one who cancels has none
// @idempotency body.id
// @timeout 60s

// A delivery is handled once (`@idempotency`), but Stripe promises no order, and one that failed comes again for three days. So
// what decides is not when a delivery comes: a cancellation leaves a mark for its subscription, a container that is never started and
// holds nothing but that id, and only then looks for the tenant; a signup makes the tenant, and only then looks for the mark.
// Whichever is second sees the other. `stripe-sweep.js` removes marks after a week.

const TEMPLATE = secrets.SIGNUP_TEMPLATE || 'shop-app'
const SIGNED_BY = (secrets.STRIPE_WEBHOOK_SECRET || '').split(' ')
const STRIPE = secrets.STRIPE_API_BASE || 'https://api.stripe.com'

let event
try {
  event = stripe.verify(req.rawBody, req.headers['stripe-signature'], SIGNED_BY)
} catch (error) {
  return res.status(400).json({ error: error.message })
}

switch (event.type) {
  case 'checkout.session.completed':
    return signUp(event.data.object, event.created)
  case 'customer.subscription.deleted':
    return cancel(event.data.object)
  default:
    return { ignored: event.type }
}

function labels(subscription, created) {
  return { stripe_subscription: subscription, stripe_created: String(created) }
}

function markOf(subscription) {
  return { external_id: `cancelled:${subscription}` }
}

async function signUp(session, created) {
  if (!session.customer) return { ignored: 'a payment without a customer' }
  const subscription = session.subscription || 'none'
  const wanted = {
    external_id: session.customer,
    environment_vars: {
      CUSTOMER: session.customer_details?.name || session.customer,
      PLAN: session.metadata?.plan || 'free',
    },
    labels: labels(subscription, created),
  }
  if (await tenantry.containers.get(markOf(subscription))) return { cancelled: true }
  const tenant = await tenantry.containers.ensure(TEMPLATE, wanted)
  if (!tenant.created && Number(tenant.labels.stripe_created) < created) {
    // A customer who subscribed anew: the end of the earlier subscription is no longer the end of the tenant.
    await tenantry.containers.patch(tenant.id, { labels: wanted.labels })
  }
  if (await tenantry.containers.get(markOf(subscription))) {
    await end(session.customer, subscription)
    return { cancelled: true }
  }
  await tell(session.customer, tenant.url)
  return { url: tenant.url }
}

async function cancel(subscription) {
  const mark = { ...markOf(subscription.id), labels: { stripe: 'cancelled' } }
  await tenantry.containers.ensure(TEMPLATE, { ...mark, start: false, autostart: false, wake_on_request: false })
  return { deleted: await end(subscription.customer, subscription.id) }
}

// Deletes a customer's tenant with all its data, where it is this subscription's.
async function end(customer, subscription) {
  const tenant = await tenantry.containers.get({ external_id: customer })
  if (tenant?.labels.stripe_subscription !== subscription) return false
  // As it was looked at: one that got a new subscription meanwhile is refused, and Stripe's next delivery looks again.
  await tenantry.containers.delete(tenant.id, { if_match: tenant.generation })
  return true
}

// Stores the URL with the customer, where the app and its emails find it. What it says is the same however often.
async function tell(customer, url) {
  if (!secrets.STRIPE_API_KEY) return
  const answer = await fetch(`${STRIPE}/v1/customers/${encodeURIComponent(customer)}`, {
    method: 'POST',
    headers: { authorization: `Bearer ${secrets.STRIPE_API_KEY}`, 'content-type': 'application/x-www-form-urlencoded' },
    body: new URLSearchParams({ 'metadata[tenant_url]': url }).toString(),
  })
  if (!answer.ok) throw new Error(`Stripe did not take the URL of ${customer}: ${answer.status}`)
}
