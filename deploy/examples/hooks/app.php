<?php
// A chat as an application behind Roomcast, in one file.
//
//     ROOMCAST_SECRET=… PHP_CLI_SERVER_WORKERS=8 php -S 127.0.0.1:8000 app.php
//
// Roomcast posts the events of its clients, and carries out the operations of the response. Clients send arguments of
// any number and type. An exception would count as an outage of the application, so each function checks its arguments.

declare(strict_types=1);

// Users by their tokens. A real application asks its sessions or its database.
const USERS = ['token-of-ada' => 'ada', 'token-of-bob' => 'bob'];

function connect(array $request): array
{
    $token = $request['auth']['token'] ?? null;
    $user = is_string($token) ? USERS[$token] ?? null : null;
    if ($user === null) {
        return [['op' => 'refuse', 'message' => 'unknown token', 'data' => ['code' => 401]]];
    }
    $others = ['rooms' => ['lobby'], 'except' => [$request['socket']['id']]];
    return [
        ['op' => 'set_user', 'user' => $user],
        ['op' => 'set_data', 'data' => ['name' => $user]],
        ['op' => 'join', 'rooms' => ['lobby']],
        ['op' => 'emit', 'event' => 'welcome', 'args' => [$user]],
        ['op' => 'emit', 'event' => 'joined', 'args' => [$user]] + $others,
    ];
}

function message(array $request, mixed $text = null): array
{
    if (!is_string($text) || trim($text) === '') {
        return [['op' => 'refuse', 'message' => 'say something']];
    }
    $sender = $request['socket']['data']['name'];
    return [
        ['op' => 'emit', 'event' => 'message', 'args' => [$sender, $text], 'rooms' => ['lobby']],
        ['op' => 'ack', 'args' => ['delivered']],
    ];
}

function whisper(array $request, mixed $user = null, mixed $text = null): array
{
    if (!in_array($user, USERS, true) || !is_string($text)) {
        return [['op' => 'refuse', 'message' => 'name a user and say something']];
    }
    $sender = $request['socket']['user'];
    return [
        ['op' => 'emit', 'event' => 'whisper', 'args' => [$sender, $text], 'users' => [$user]],
        ['op' => 'ack', 'args' => ['delivered']],
    ];
}

function disconnect(array $request): array
{
    return [['op' => 'emit', 'event' => 'left', 'args' => [$request['socket']['user']], 'rooms' => ['lobby']]];
}

function respond(array $request): array
{
    return match ([$request['type'], $request['event'] ?? '']) {
        ['connect', ''] => connect($request),
        ['disconnect', ''] => disconnect($request),
        ['batch', ''] => array_map(respond(...), $request['events']),
        ['event', 'message'] => message($request, ...$request['args']),
        ['event', 'whisper'] => whisper($request, ...$request['args']),
        default => [['op' => 'refuse', 'message' => 'unknown event']],
    };
}

function is_genuine(string $header, string $body): bool
{
    $parts = [];
    foreach (explode(',', $header) as $part) {
        [$name, $value] = explode('=', $part, 2) + ['', ''];
        $parts[$name] = $value;
    }
    $sent = $parts['t'] ?? '0';
    $wanted = hash_hmac('sha256', "$sent.$body", getenv('ROOMCAST_SECRET'));
    return abs(time() - (int) $sent) < 300 && hash_equals($wanted, $parts['v1'] ?? '');
}

$body = file_get_contents('php://input');
if (!is_genuine($_SERVER['HTTP_ROOMCAST_SIGNATURE'] ?? '', $body)) {
    http_response_code(403);
    exit;
}
header('Content-Type: application/json');
echo json_encode(respond(json_decode($body, true)));
