// `tenantry`, `stripe` and `shared`: what a script uses without a network of its own.
(function builtin(host, track, scope) {
  'use strict';

  class TenantryError extends Error {
    constructor(status, code, message, field) {
      super(message);
      this.name = 'TenantryError';
      Object.assign(this, { status, code, field });
    }
  }
  const isId = (text) => typeof text === 'string' && /^[0-9a-f]{24}$/.test(text);
  const pageMax = 50;

  // `if_match`: only where the object's generation is still this one; else it is refused with 412.
  async function request(method, path, body, { if_match } = {}) {
    const wanted = if_match === undefined || if_match === null ? null : String(if_match);
    const sent = body === undefined ? null : JSON.stringify(body);
    const answer = await track(host.request(String(method).toUpperCase(), String(path), sent, wanted));
    const [status, text] = answer;
    let parsed;
    try { parsed = text === '' ? {} : JSON.parse(text); } catch { parsed = { message: text.slice(0, 500) }; }
    if (status >= 400) {
      throw new TenantryError(status, parsed.error ?? 'UNKNOWN', parsed.message ?? `the API answered ${status}`, parsed.data?.field);
    }
    return parsed && typeof parsed === 'object' && 'data' in parsed ? parsed.data : parsed;
  }

  const query = (fields) => {
    const pairs = Object.entries(fields).filter(([, value]) => value !== undefined && value !== null);
    return pairs.length === 0 ? '' : '?' + pairs.map(([name, value]) => `${encodeURIComponent(name)}=${encodeURIComponent(value)}`).join('&');
  };
  // Page by page until `stop` has what it looks for, or there is no more.
  async function pages(path, items, filter, stop) {
    const found = [];
    for (let page = 1; page <= pageMax; page += 1) {
      const data = await request('GET', path + query({ limit: 100, ...filter, page }));
      const list = data[items] ?? [];
      found.push(...list);
      if (stop(list) || page >= (data.pagination?.totalPages ?? 1)) break;
    }
    return found;
  }

  async function projectId(project) {
    if (project === undefined || project === null || isId(project)) return project ?? undefined;
    const found = (await pages('/projects/', 'projects', {}, (list) => list.some((one) => one.alias === project))).find((one) => one.alias === project);
    if (!found) throw new TenantryError(404, 'PROJECT_NOT_FOUND', `there is no project \`${project}\``, 'project');
    return found.id;
  }
  const within = async (project) => {
    const id = await projectId(project);
    return id ? `/projects/${id}/containers` : '/containers/';
  };
  async function named(name, project) {
    const fits = (one) => one.name === name;
    return (await pages(await within(project), 'containers', {}, (list) => list.some(fits))).find(fits) ?? null;
  }
  async function idOf(container, project) {
    if (container && typeof container === 'object') {
      if (isId(container.id)) return container.id;
      const found = await get(container);
      if (!found) throw new TenantryError(404, 'CONTAINER_NOT_FOUND', `there is no container ${JSON.stringify(container)}`);
      return found.id;
    }
    if (isId(container)) return container;
    if (typeof container !== 'string' || container === '') throw new TypeError('a container is wanted: its id, its name, {external_id} or {name}');
    const known = `${scope}\0${project ?? ''}\0${container}`;
    const cached = host.known(known);
    if (cached) return cached;
    const found = await named(container, project);
    if (!found) throw new TenantryError(404, 'CONTAINER_NOT_FOUND', `there is no container \`${container}\``);
    if (found.template) host.know(known, found.id);
    return found.id;
  }
  async function get(which) {
    if (isId(which)) {
      try { return await request('GET', `/containers/${which}`); } catch (error) { if (error.status === 404) return null; throw error; }
    }
    if (typeof which === 'string') return named(which);
    const { external_id, name, id, project } = which ?? {};
    if (id !== undefined) return get(id);
    if (external_id === undefined && name === undefined) throw new TypeError('containers.get: an id, {external_id} or {name} is wanted');
    if (external_id === undefined) return named(name, project);
    const data = await request('GET', (await within(project)) + query({ external_id }));
    return data.containers[0] ?? null;
  }
  async function copy(template, options = {}) {
    const { project, wait, timeout, ...body } = options;
    const target = await projectId(project);
    if (target) body.target_project_id = target;
    const send = async (id) => request('POST', `/containers/${id}/copy` + query({ wait, timeout }), body);
    const id = await idOf(template);
    try {
      return await send(id);
    } catch (error) {
      // A template that was made anew under the same name.
      if (error.status !== 404 || isId(template) || !host.forget(`${scope}\0\0${template}`)) throw error;
      return send(await idOf(template));
    }
  }
  async function ensure(template, options = {}) {
    const { external_id, project } = options;
    if (typeof external_id !== 'string' || external_id === '') throw new TypeError('containers.ensure: external_id is wanted: it says which container is meant');
    const there = async () => get({ external_id, project });
    const found = await there();
    if (found) return { ...found, created: false };
    try {
      return { ...(await copy(template, options)), created: true };
    } catch (error) {
      const won = error.status === 409 ? await there() : null;
      if (!won) throw error;
      return { ...won, created: false };
    }
  }
  const verb = (name) => async (which, options = {}) => request('POST', `/containers/${await idOf(which)}/${name}` + query(options));

  const tenantry = {
    request,
    TenantryError,
    containers: {
      copy, ensure, get,
      async delete(which, { wait, if_match } = {}) {
        return request('DELETE', `/containers/${await idOf(which)}` + query({ wait }), undefined, { if_match });
      },
      async patch(which, body, { if_match, ...options } = {}) {
        return request('PATCH', `/containers/${await idOf(which)}` + query(options), body, { if_match });
      },
      async list({ project, ...filter } = {}) {
        const path = await within(project);
        if (filter.page !== undefined) return (await request('GET', path + query(filter))).containers;
        return pages(path, 'containers', filter, () => false);
      },
      start: verb('start'), stop: verb('stop'), restart: verb('restart'),
    },
    projects: {
      async list(filter = {}) { return pages('/projects/', 'projects', filter, () => false); },
      async get(project) {
        if (!isId(project)) return (await tenantry.projects.list()).find((one) => one.alias === project) ?? null;
        try { return await request('GET', `/projects/${project}`); } catch (error) { if (error.status === 404) return null; throw error; }
      },
    },
    events: { async list(filter = {}) { return (await request('GET', '/events' + query(filter))).events; } },
  };

  class StripeSignatureError extends Error {
    constructor(message) { super(message); this.name = 'StripeSignatureError'; }
  }
  const stripe = {
    StripeSignatureError,
    verify(rawBody, header, secret, { tolerance = 300 } = {}) {
      const raw = typeof rawBody === 'string' ? Buffer.from(rawBody) : rawBody instanceof ArrayBuffer ? new Uint8Array(rawBody) : rawBody;
      if (!(raw instanceof Uint8Array)) throw new TypeError('stripe.verify: the raw body is wanted (req.rawBody), not what was parsed from it');
      const secrets = [].concat(secret).filter((one) => typeof one === 'string' && one !== '');
      if (secrets.length === 0) throw new TypeError('stripe.verify: a secret is wanted (secrets.STRIPE_WEBHOOK_SECRET)');
      const wrong = host.stripe(raw, String(header ?? ''), secrets, Number(tolerance));
      if (wrong) throw new StripeSignatureError(wrong);
      return JSON.parse(Buffer.from(raw).toString('utf8'));
    },
  };

  const ask = async (question) => JSON.parse(await track(host.ask(JSON.stringify(question))));
  const shared = {
    get: async (key) => (await ask({ op: 'get', key: String(key) })) ?? undefined,
    set: async (key, value, { ttl } = {}) => { await ask({ op: 'set', key: String(key), value: value === undefined ? null : value, ttl }); },
    delete: async (key) => ask({ op: 'delete', key: String(key) }),
    increment: async (key, by = 1) => ask({ op: 'increment', key: String(key), by: Number(by) }),
  };
  return { tenantry, stripe, shared };
})
