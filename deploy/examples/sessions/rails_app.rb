#!/usr/bin/env ruby
# frozen_string_literal: true

# An application of Rails in one file: Roomcast lets in whoever has logged in to it.
#
#   gem install rails puma
#   ROOMCAST_SECRET=… SESSION_SECRET=… ./rails_app.rb [PORT]

require "action_controller/railtie"
require "rack/handler/puma"

class Chat < Rails::Application
  config.secret_key_base = ENV.fetch("SESSION_SECRET")
  config.session_store :cookie_store, key: "_chat_session"
  config.load_defaults 6.1
  config.eager_load = false
  # The host in the URL of the hook is one of them.
  config.hosts << "127.0.0.1"
  config.log_level = :warn
  initialize!
end

# Stands for a model of the application.
User = Struct.new(:id, :name, :password) do
  def self.find_by(wanted)
    all = [new(1, "ada", "lovelace")]
    all.find { |user| wanted.all? { |name, value| user[name] == value } }
  end

  def authenticate(text) = ActiveSupport::SecurityUtils.secure_compare(password, text)
end

class ApplicationController < ActionController::Base
end

class SessionsController < ApplicationController
  # A form of the site has a token; this is for a program.
  skip_forgery_protection

  def create
    user = User.find_by(name: params[:username])
    return head :forbidden unless user&.authenticate(params[:password].to_s)

    reset_session
    session[:user_id] = user.id
    render json: { user: user.name }
  end
end

class RoomcastController < ApplicationController
  skip_forgery_protection # The signature proves where the request comes from.

  def create
    body = request.raw_post
    return head :forbidden unless genuine?(ENV["ROOMCAST_SECRET"], request.headers["Roomcast-Signature"].to_s, body)

    # It may have logged out since it connected.
    user = User.find_by(id: session[:user_id])
    render json: operations(JSON.parse(body), user)
  end

  private

  def operations(hook, user)
    return [{ op: "refuse", message: "log in first" }] unless user

    case hook.values_at("type", "event")
    in ["connect", _]
      [{ op: "set_user", user: user.id.to_s }, { op: "set_data", data: { name: user.name } }]
    in ["event", "whoami"]
      [{ op: "ack", args: [user.name] }]
    else
      [{ op: "refuse", message: "unknown event" }]
    end
  end

  def genuine?(secret, header, body)
    parts = header.split(",").to_h { |part| part.partition("=").values_at(0, 2) }
    sent = parts["t"].to_s
    wanted = OpenSSL::HMAC.hexdigest("SHA256", secret, "#{sent}.#{body}")
    recent = (Time.now.to_i - sent.to_i).abs < 300
    recent && OpenSSL.secure_compare(wanted, parts["v1"].to_s)
  end
end

Chat.routes.draw do
  post "/login", to: "sessions#create"
  post "/roomcast", to: "roomcast#create"
end

Rack::Handler::Puma.run(Chat, Host: "127.0.0.1", Port: ARGV.fetch(0, "8000"), Silent: true)
