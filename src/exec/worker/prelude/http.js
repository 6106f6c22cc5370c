// `req` and `res`.
(function http(host, asked, body) {
  'use strict';
  const utf8 = 'text/plain; charset=utf-8';
  const isBytes = (value) => value instanceof Uint8Array || value instanceof ArrayBuffer;
  const bytes = (value) => (value instanceof ArrayBuffer ? new Uint8Array(value) : value);

  // req
  const at = asked.url.indexOf('?');
  const many = (pairs) => {
    const found = Object.create(null);
    for (const [name, value] of pairs) {
      if (!(name in found)) found[name] = value;
      else found[name] = [].concat(found[name], value);
    }
    return found;
  };
  const headers = Object.create(null);
  for (const [name, value] of asked.headers) headers[name] = name in headers ? `${headers[name]}${name === 'cookie' ? '; ' : ', '}${value}` : value;
  const rawBody = Buffer.from(body);
  const req = {
    method: asked.method,
    url: asked.url,
    path: at < 0 ? asked.url : asked.url.slice(0, at),
    query: many(new URLSearchParams(at < 0 ? '' : asked.url.slice(at + 1))),
    params: asked.params,
    headers,
    ip: asked.client,
    rawBody,
    get: (name) => headers[String(name).toLowerCase()],
    header: (name) => headers[String(name).toLowerCase()],
    text: async () => rawBody.toString('utf8'),
    json: async () => JSON.parse(rawBody.toString('utf8')),
  };
  const type = String(headers['content-type'] || '').split(';')[0].trim().toLowerCase();
  if (rawBody.length > 0) {
    if (type === 'application/json' || type.endsWith('+json')) {
      try { req.body = req.json && JSON.parse(rawBody.toString('utf8')); } catch (error) { req.bodyError = error; }
    } else if (type === 'application/x-www-form-urlencoded') {
      req.body = many(new URLSearchParams(rawBody.toString('utf8')));
    } else {
      req.body = rawBody.toString('utf8');
    }
  }

  // res
  const set = new Map();
  let status = 200;
  let sent = false;
  let over = false;
  let finish;
  const finished = new Promise((resolve) => { finish = resolve; });
  const checkName = (name) => {
    const text = String(name).toLowerCase();
    if (!/^[a-z0-9!#$%&'*+.^_`|~-]+$/.test(text)) throw new TypeError(`${JSON.stringify(name)} is not a header's name`);
    return text;
  };
  const checkValue = (value) => {
    const text = String(value);
    if (/[\r\n\0]/.test(text)) throw new TypeError('a header is one line');
    return text;
  };
  function head() {
    if (sent) return;
    sent = true;
    const list = [];
    for (const [name, value] of set) for (const one of [].concat(value)) list.push([name, one]);
    host.head(status, JSON.stringify(list));
  }
  function write(data) {
    if (over) throw new Error('res: the answer has ended');
    const part = isBytes(data) ? bytes(data) : typeof data === 'string' ? data : String(data);
    head();
    if (part.length > 0) host.write(part, part.length);
  }
  function end(data) {
    if (over) return res;
    if (data !== undefined && data !== null) write(data);
    head();
    over = true;
    host.end();
    finish();
    return res;
  }
  const change = (what) => { if (sent) throw new Error(`res.${what}: the head of the answer is sent`); };
  const res = {
    get statusCode() { return status; },
    set statusCode(code) { res.status(code); },
    get headersSent() { return sent; },
    get writableEnded() { return over; },
    status(code) {
      change('status');
      if (!Number.isInteger(code) || code < 200 || code > 599) throw new RangeError(`res.status: ${code} is not a status of an answer, 200 to 599`);
      status = code;
      return res;
    },
    set(name, value) {
      change('set');
      if (name && typeof name === 'object') { for (const one of Object.keys(name)) res.set(one, name[one]); return res; }
      set.set(checkName(name), Array.isArray(value) ? value.map(checkValue) : checkValue(value));
      return res;
    },
    append(name, value) { return res.set(name, [].concat(set.get(checkName(name)) ?? [], value)); },
    get: (name) => set.get(String(name).toLowerCase()),
    getHeader: (name) => set.get(String(name).toLowerCase()),
    removeHeader(name) { change('removeHeader'); set.delete(String(name).toLowerCase()); return res; },
    writeHead(code, fields) { res.status(code); return fields ? res.set(fields) : res; },
    type(value) {
      const short = { html: 'text/html; charset=utf-8', text: utf8, txt: utf8, json: 'application/json', css: 'text/css; charset=utf-8', js: 'text/javascript; charset=utf-8', xml: 'application/xml', svg: 'image/svg+xml', png: 'image/png' };
      return res.set('content-type', short[value] ?? value);
    },
    json(value) {
      const text = JSON.stringify(value);
      if (text === undefined) throw new TypeError('res.json: the value has no JSON');
      if (!set.has('content-type')) res.set('content-type', 'application/json');
      return end(text);
    },
    send(value) {
      if (value === undefined || value === null) return end();
      if (typeof value === 'string') { if (!set.has('content-type')) res.set('content-type', utf8); return end(value); }
      if (isBytes(value)) { if (!set.has('content-type')) res.set('content-type', 'application/octet-stream'); return end(value); }
      return res.json(value);
    },
    redirect(code, url) {
      if (url === undefined) [code, url] = [302, code];
      res.status(code).set('location', url);
      return end();
    },
    sendStatus(code) { return res.status(code).end(); },
    write(data) { write(data); return true; },
    end,
  };
  res.setHeader = res.header = res.set;

  // Sends what a handler returned. `idle`: wait until nothing is under way.
  async function answer(value, idle) {
    if (over) return;
    if (value === undefined || value === res) {
      await Promise.race([finished, idle()]);
      if (!over && !sent && status === 200) status = 204;
      end();
    } else if (sent) {
      end(typeof value === 'string' || isBytes(value) ? value : JSON.stringify(value));
    } else if (typeof Response === 'function' && value instanceof Response) {
      res.status(value.status);
      value.headers.forEach((text, name) => { if (name !== 'content-length') res.append(name, text); });
      end(await value.arrayBuffer());
    } else {
      res.send(value === null ? 'null' : typeof value === 'number' || typeof value === 'boolean' ? JSON.stringify(value) : value);
    }
  }
  return { req, res, answer };
})
