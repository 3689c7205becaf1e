<?php
// An application of Laravel in one file: Roomcast lets in whoever has logged in to it.
//
//     composer require laravel/framework    (Debian: apt-get install php-laravel-framework)
//     ROOMCAST_SECRET=… SESSION_SECRET=… SESSIONS=/tmp/sessions php -S 127.0.0.1:8000 laravel_app.php
//
// What the folders of an application configure is at the top, what they contain is below.

use Illuminate\Auth\GenericUser;
use Illuminate\Config\Repository;
use Illuminate\Contracts\Auth\Authenticatable;
use Illuminate\Contracts\Auth\UserProvider;
use Illuminate\Contracts\Debug\ExceptionHandler;
use Illuminate\Foundation\Application;
use Illuminate\Foundation\Exceptions\Handler;
use Illuminate\Foundation\Http\Kernel;
use Illuminate\Foundation\Http\Middleware\VerifyCsrfToken;
use Illuminate\Http\Request;
use Illuminate\Http\Response;
use Illuminate\Support\Facades\Auth;
use Illuminate\Support\Facades\Facade;
use Illuminate\Support\Facades\Hash;
use Illuminate\Support\Facades\Route;
use Symfony\Component\HttpKernel\Exception\HttpExceptionInterface;

error_reporting(E_ALL & ~E_DEPRECATED);
$composer = __DIR__ . '/vendor/autoload.php';
require is_file($composer) ? $composer : 'Illuminate/autoload.php';

$folder = getenv('SESSIONS');
$app = new Application($folder);
$app->instance('config', new Repository([
    'app' => ['key' => hash('sha256', getenv('SESSION_SECRET'), true), 'cipher' => 'AES-256-CBC', 'debug' => false],
    'auth' => [
        'defaults' => ['guard' => 'web'],
        'guards' => ['web' => ['driver' => 'session', 'provider' => 'members']],
        'providers' => ['members' => ['driver' => 'members']],
    ],
    'hashing' => ['driver' => 'bcrypt'],
    'logging' => ['default' => 'stderr', 'channels' => ['stderr' => ['driver' => 'errorlog']]],
    'services' => ['roomcast' => ['secret' => getenv('ROOMCAST_SECRET')]],
    'session' => [
        'driver' => 'file', 'files' => $folder, 'lifetime' => 120, 'expire_on_close' => false, 'lottery' => [2, 100],
        'cookie' => 'laravel_session', 'path' => '/', 'domain' => null, 'secure' => false, 'http_only' => true,
        'same_site' => 'lax',
    ],
]));
Facade::setFacadeApplication($app);
foreach ([
    Illuminate\Auth\AuthServiceProvider::class,
    Illuminate\Cookie\CookieServiceProvider::class,
    Illuminate\Encryption\EncryptionServiceProvider::class,
    Illuminate\Filesystem\FilesystemServiceProvider::class,
    Illuminate\Hashing\HashServiceProvider::class,
    Illuminate\Session\SessionServiceProvider::class,
] as $provider) {
    $app->register($provider);
}
$app->singleton(ExceptionHandler::class, Errors::class);

class Errors extends Handler
{
    protected function renderHttpException(HttpExceptionInterface $error)
    {
        return new Response('', $error->getStatusCode());
    }
}

class Csrf extends VerifyCsrfToken
{
    // The signature proves where the request of the hook comes from. A form of the site has a token; here,
    // a program logs in.
    protected $except = ['roomcast', 'login'];
}

class WebKernel extends Kernel
{
    protected $bootstrappers = [];

    protected $middlewareGroups = ['web' => [
        Illuminate\Cookie\Middleware\EncryptCookies::class,
        Illuminate\Cookie\Middleware\AddQueuedCookiesToResponse::class,
        Illuminate\Session\Middleware\StartSession::class,
        Csrf::class,
    ]];
}

// Stands for a model and its table.
class Members implements UserProvider
{
    public function retrieveById($id)
    {
        return $id == 1 ? new GenericUser(['id' => 1, 'name' => 'ada', 'password' => Hash::make('lovelace')]) : null;
    }

    public function retrieveByCredentials(array $credentials)
    {
        return $credentials['name'] === 'ada' ? $this->retrieveById(1) : null;
    }

    public function validateCredentials(Authenticatable $user, array $credentials)
    {
        return Hash::check($credentials['password'], $user->getAuthPassword());
    }

    public function retrieveByToken($id, $token)
    {
        return null;
    }

    public function updateRememberToken(Authenticatable $user, $token)
    {
    }
}

Auth::provider('members', fn () => new Members());

function is_genuine(string $secret, string $header, string $body): bool
{
    $parts = [];
    foreach (explode(',', $header) as $part) {
        [$name, $value] = explode('=', $part, 2) + ['', ''];
        $parts[$name] = $value;
    }
    $sent = $parts['t'] ?? '0';
    $wanted = hash_hmac('sha256', "$sent.$body", $secret);
    return abs(time() - (int) $sent) < 300 && hash_equals($wanted, $parts['v1'] ?? '');
}

// What follows is in routes/web.php, whose routes have these middlewares.
Route::post('/login', function (Request $request) {
    abort_unless(Auth::attempt(['name' => $request->input('username'), 'password' => $request->input('password')]), 403);
    $request->session()->regenerate();
    return ['user' => Auth::user()->name];
})->middleware('web');

Route::post('/roomcast', function (Request $request) {
    $secret = config('services.roomcast.secret');
    abort_unless(is_genuine($secret, $request->header('Roomcast-Signature', ''), $request->getContent()), 403);
    // It may have logged out since it connected.
    $user = Auth::user();
    if ($user === null) {
        return [['op' => 'refuse', 'message' => 'log in first']];
    }
    return match ([$request->input('type'), $request->input('event')]) {
        ['connect', null] => [
            ['op' => 'set_user', 'user' => (string) $user->id],
            ['op' => 'set_data', 'data' => ['name' => $user->name]],
        ],
        ['event', 'whoami'] => [['op' => 'ack', 'args' => [$user->name]]],
        default => [['op' => 'refuse', 'message' => 'unknown event']],
    };
})->middleware('web');

$app->boot();
$kernel = $app->make(WebKernel::class);
$request = Request::capture();
$response = $kernel->handle($request);
$response->send();
$kernel->terminate($request, $response);
