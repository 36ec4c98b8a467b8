package pseudoword

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// patience is how long a server that is away is waited for; pause is between two tries.
	patience = time.Minute
	pause    = 500 * time.Millisecond
)

// follow opens a watch and hands its messages to told until that says that one was the last. A watch that breaks off is
// opened again; quiet is not away, so patience is counted from the first failure in a row.
func follow[M any](
	ctx context.Context,
	open func(context.Context) (grpc.ServerStreamingClient[M], error),
	told func(*M) bool,
) error {
	var awaySince time.Time
	for {
		ended, err := read(ctx, open, func(message *M) bool {
			awaySince = time.Time{}
			return told(message)
		})
		if ended {
			return nil
		}
		if err != nil {
			if awaySince.IsZero() {
				awaySince = time.Now()
			}
			if status.Code(err) != codes.Unavailable || time.Since(awaySince) > patience {
				return FromCall(err)
			}
		}
		select {
		case <-ctx.Done():
			return FromCall(status.FromContextError(ctx.Err()).Err())
		case <-time.After(pause):
		}
	}
}

// read says whether told has seen the last message; a stream that ended before is neither that nor an error.
func read[M any](
	ctx context.Context,
	open func(context.Context) (grpc.ServerStreamingClient[M], error),
	told func(*M) bool,
) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := open(ctx)
	if err != nil {
		return false, err
	}
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if told(message) {
			return true, nil
		}
	}
}
