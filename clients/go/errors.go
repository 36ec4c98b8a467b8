package pseudoword

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Error is a call that failed, read from the rich status that every server of pseudoword answers.
type Error struct {
	// Code is the status code.
	Code codes.Code
	// Message is meant for people.
	Message string
	// Reason is stable and meant for programs ("WORD_UNKNOWN", "ETAG_MISMATCH", ...); empty when the answer came from the
	// network and not from a server.
	Reason string
	// Metadata holds facts about the failure, such as the word that is unknown.
	Metadata map[string]string
	// Violations says what is wrong with the request, field by field.
	Violations []Violation
	// RetryAfter says when trying again may help; 0 where the server did not say.
	RetryAfter time.Duration

	status *status.Status
}

// Violation is one field of a request that is wrong.
type Violation struct {
	Field, Description string
}

// Error is the message, followed by the violations that it does not name.
func (e *Error) Error() string {
	var text strings.Builder
	text.WriteString(orElse(e.Message, e.Code.String()))
	for _, violation := range e.Violations {
		if !strings.Contains(e.Message, violation.Description) {
			fmt.Fprintf(&text, "; %s: %s", violation.Field, violation.Description)
		}
	}
	return text.String()
}

// GRPCStatus lets status.Code and status.Convert read the error.
func (e *Error) GRPCStatus() *status.Status { return e.status }

// Unwrap makes errors.Is(err, context.Canceled) and errors.Is(err, context.DeadlineExceeded) true where they apply.
func (e *Error) Unwrap() error {
	switch e.Code {
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// FromCall reads the error of a generated client's call; nil stays nil, and what is no status of gRPC stays as it is.
func FromCall(err error) error {
	if err == nil {
		return nil
	}
	found, ok := status.FromError(err)
	if !ok {
		return err
	}
	return fromStatus(found)
}

// FromStatus reads a status that an answer carries, as failed jobs and unresolved words do.
func FromStatus(answered *spb.Status) *Error { return fromStatus(status.FromProto(answered)) }

func fromStatus(found *status.Status) *Error {
	failure := &Error{Code: found.Code(), Message: found.Message(), status: found}
	for _, detail := range found.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			failure.Reason, failure.Metadata = detail.GetReason(), detail.GetMetadata()
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				failure.Violations = append(
					failure.Violations, Violation{Field: violation.GetField(), Description: violation.GetDescription()},
				)
			}
		case *errdetails.RetryInfo:
			failure.RetryAfter = detail.GetRetryDelay().AsDuration()
		}
	}
	return failure
}
